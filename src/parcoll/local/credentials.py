"""Credentials: a fresh key with its own certificate. Who holds both may use the local cluster; nobody else.

The key lives in the memory of the processes that need it, and travels between them through a pipe. On Linux
it never touches a disk. Where there are no files in memory, dask writes it into a temporary directory for
the moment in which OpenSSL reads it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from parcoll.clock import time
from parcoll.system import MemoryFile

if TYPE_CHECKING:
    from distributed import Security

# The certificate outlives any run: after it expires, clients are refused. It names no host, since dask
# checks who signed a peer's certificate and not the peer's name.
_VALID_DAYS = 3650
_COMMON_NAME = "parcoll"


@dataclass(frozen=True)
class Credentials:
    """A certificate and its private key (both PEM text) that open one local cluster.

    Attributes:
        certificate: What both ends of a connection show, and what each end trusts. It is no secret.
        key: The secret. ``repr`` shows neither, so that neither ends up in a log.
    """

    certificate: str = field(repr=False)
    key: str = field(repr=False)

    @classmethod
    def generate(cls) -> Credentials:
        """Return fresh credentials, signed by themselves."""
        # Imported here, since it takes 35 ms and only the process that starts a local cluster needs it.
        from datetime import UTC, datetime, timedelta

        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        # A P-256 key is made in 2 ms; the RSA key of Security.temporary() takes 50 to 250 ms.
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, _COMMON_NAME)])
        now = datetime.fromtimestamp(time.time(), UTC)  # `now` is what a test may have set
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            # Valid from a day ago: the clock may be set back while the cluster runs.
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=_VALID_DAYS))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(_COMMON_NAME)]), False)
            .sign(key, hashes.SHA256())
        )
        key_pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return cls(
            certificate=certificate.public_bytes(serialization.Encoding.PEM).decode(),
            key=key_pem.decode(),
        )

    def security(self) -> Security:
        """Return a ``distributed.Security`` for a client, a scheduler or a worker of this process.

        Both ends of each connection must show this certificate (mutual TLS). Where the system has
        anonymous files in memory (Linux), one holds the key and stays open for as long as the result lives.
        """
        file = MemoryFile.of(self.certificate + self.key)
        key_source = file.path if file else self.key
        certificate_source = file.path if file else self.certificate
        security: Security = _security_class(file)(
            require_encryption=True,
            # dask takes the trusted certificate as text too; it is no secret, so no file needs to hold it.
            tls_ca_file=self.certificate,
            tls_client_key=key_source,
            tls_client_cert=certificate_source,
            tls_scheduler_key=key_source,
            tls_scheduler_cert=certificate_source,
            tls_worker_key=key_source,
            tls_worker_cert=certificate_source,
        )
        return security


def _security_class(file: MemoryFile | None) -> type[Security]:
    """Return a subclass of Security that keeps open the file that its paths name.

    dask opens these paths whenever it makes a TLS context, as for ``get_client()`` in a task.
    """
    from distributed import Security

    class SecurityInMemory(Security):
        kept = file

    return SecurityInMemory
