"""An exception arrives as what it was: class, text, args, attributes; an `except` clause catches it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import every_exception
import pytest
from every_exception import seen
from scripts import clean_environment

from parcoll import parallel
from parcoll.wire.exceptions import Failure

PORT = "http://127.0.0.1:1"  # where nobody answers


# Each class, made of whatever it takes -----------------------------------------------------------

# Packages whose exceptions are many, or odd. How many classes they have differs from version to version.
PACKAGES = {
    "stdlib": 320,
    "pydantic": 60,
    "pydantic_core": 5,
    "lxml": 30,
    "requests": 20,
    "httpx": 20,
    "aiohttp": 40,
    "sqlalchemy": 40,
    "botocore": 80,
    "pandas": 20,
    "pyarrow": 10,
    "PIL": 3,
    "click": 8,
    "grpc": 10,
    "numpy": 10,
    "msgspec": 3,
    "attr": 5,
    "urllib3": 20,
    "dask": 3,
    "distributed": 5,
}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_class_comes_back_as_what_it_was(package: str) -> None:
    if package != "stdlib":
        pytest.importorskip(package, reason=f"{package} is not installed")
    command = [sys.executable, "-W", "ignore", every_exception.__file__, package]
    environment = clean_environment() | {"PYTHONPATH": str(Path(sys.modules["parcoll"].__file__).parents[1])}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr
    *wrong, summary = ended.stdout.splitlines()
    assert wrong == []
    assert int(summary.split()[0]) >= PACKAGES[package]


# Those that a package's own code makes ------------------------------------------------------------


def of_pydantic() -> object:
    import pydantic

    class Model(pydantic.BaseModel):
        number: int
        names: list[str]

    return Model(number="x", names=[1])


def of_pydantic_s_rules() -> object:
    import pydantic

    class Model(pydantic.BaseModel):
        number: undefined_name  # noqa: F821

    return Model(number=1)


def of_lxml_s_parser() -> object:
    from lxml import etree

    return etree.fromstring("<a>\n<b></a>")


def of_lxml_s_paths() -> object:
    from lxml import etree

    return etree.fromstring("<a/>").xpath("//[")


def of_lxml_s_schemas() -> object:
    from lxml import etree

    schema = """<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema"><xs:element name="b"/></xs:schema>"""
    return etree.XMLSchema(etree.fromstring(schema)).assertValid(etree.fromstring("<a/>"))


def of_requests_connection() -> object:
    import requests

    return requests.get(PORT, timeout=5)


def of_requests_status() -> object:
    import requests

    response = requests.Response()
    response.status_code, response.url, response.reason = 404, PORT, "Not Found"
    return response.raise_for_status()


def of_requests_json() -> object:
    import requests

    response = requests.Response()
    response._content = b"{"
    return response.json()


def of_httpx_connection() -> object:
    import httpx

    return httpx.get(PORT)


def of_httpx_status() -> object:
    import httpx

    return httpx.Response(500, request=httpx.Request("GET", PORT)).raise_for_status()


def of_aiohttp_connection() -> object:
    import asyncio

    import aiohttp

    async def get() -> None:
        async with aiohttp.ClientSession() as session, session.get(PORT):
            pass

    return asyncio.run(get())


def of_aiohttp_status() -> object:
    import aiohttp
    import multidict
    import yarl

    headers: Any = multidict.CIMultiDictProxy(multidict.CIMultiDict({"a": "b"}))
    info = aiohttp.RequestInfo(yarl.URL(PORT), "GET", headers, yarl.URL(PORT))
    raise aiohttp.ClientResponseError(info, (), status=404, message="Not Found")


def of_sqlalchemy() -> object:
    import sqlalchemy

    with sqlalchemy.create_engine("sqlite://").connect() as connection:
        return connection.execute(sqlalchemy.text("select * from nowhere where a = :a"), {"a": 1})


def of_sqlalchemy_s_results() -> object:
    import sqlalchemy

    with sqlalchemy.create_engine("sqlite://").connect() as connection:
        return connection.execute(sqlalchemy.text("select 1 where 0")).one()


def of_botocore() -> object:
    import botocore.exceptions

    response: Any = {
        "Error": {"Code": "NoSuchKey", "Message": "no"},
        "ResponseMetadata": {"RetryAttempts": 0},
    }
    raise botocore.exceptions.ClientError(response, "GetObject")


def of_botocore_s_parameters() -> object:
    import botocore.session

    session = botocore.session.Session()
    session.set_credentials("a", "b")
    return session.create_client("s3", region_name="us-east-1").get_object(Bucket=1)


def of_pandas_parser() -> object:
    import io

    import pandas

    return pandas.read_csv(io.StringIO("a,b\n1,2\n1,2,3\n"))


def of_pandas_dates() -> object:
    import pandas

    return pandas.to_datetime("month 13")


def of_pyarrow() -> object:
    import pyarrow

    return pyarrow.array([1, "a"])


def of_pillow() -> object:
    from PIL import Image

    return Image.open(__file__)


def of_click() -> object:
    import click

    return click.Command("tool", params=[click.Option(["--number"], type=int)]).main(
        ["--number", "x"], standalone_mode=False
    )


def of_grpc() -> object:
    import grpc

    return grpc.insecure_channel("127.0.0.1:1").unary_unary("/service/method")(b"", timeout=5)


def of_numpy() -> object:
    import numpy as np

    return np.linalg.inv(np.zeros((2, 2)))


def of_numpy_s_ufuncs() -> object:
    import numpy as np

    return np.add(np.zeros(2), np.array(["a", "b"]))


def of_msgspec() -> object:
    import msgspec

    return msgspec.json.decode(b'{"a": "b"}', type=dict[str, int])


def of_attrs() -> object:
    import attr

    return setattr(attr.make_class("Frozen", ["a"], frozen=True)(1), "a", 2)


def of_a_subprocess() -> object:
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)


def of_sqlite() -> object:
    import sqlite3

    return sqlite3.connect(":memory:").execute("select * from nowhere")


def of_expat() -> object:
    import xml.etree.ElementTree as tree

    return tree.fromstring("<a>")


def of_urllib() -> object:
    import email.message
    import io
    import urllib.error

    raise urllib.error.HTTPError(PORT, 404, "Not Found", email.message.Message(), io.BytesIO(b"body"))


def of_ssl() -> object:
    import ssl

    return ssl.create_default_context(cadata="no certificate")


def of_argparse() -> object:
    import argparse

    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--number", type=int)
    return parser.parse_args(["--number", "x"])


def of_json() -> object:
    import json

    return json.loads('{"a": }')


def of_asyncio() -> object:
    import asyncio

    async def read() -> bytes:
        reader = asyncio.StreamReader()
        reader.feed_data(b"ab")
        reader.feed_eof()
        return await reader.readexactly(5)

    return asyncio.run(read())


def of_a_group() -> object:
    raise ExceptionGroup("both", [ValueError(1), ExceptionGroup("inner", [KeyError("k"), OSError(2, "no")])])


PLAIN = [
    *("int('x')", "{}['key']", "b'\\xff'.decode()", "'\\xff'.encode('ascii')", "open('/none/such')", "1 / 0"),
    *("(1).attribute", "undefined_name", "compile('a b', 'file.py', 'exec')", "import_module('no_such')"),
    *("Decimal('x')", "Decimal(1) / 0", "re.compile('(')", "struct.pack('b', 1000)", "zlib.decompress(b'x')"),
    *("queue.Queue().get_nowait()", "pickle.loads(b'x')", "shutil.copytree('/none', '/such')"),
    *("socket.create_connection(('127.0.0.1', 1))", "socket.getaddrinfo('no.such.invalid', 1)"),
    "concurrent.futures.Future().result(timeout=0)",
    *("zipfile.ZipFile(io.BytesIO(b''))", "configparser.ConfigParser().get('a', 'b')", "next(iter(()))"),
    *("tomllib.loads('a =')", "ast.parse('f(')", "datetime.date(1, 13, 1)", "graphlib_cycle()"),
    *(
        "sys.exit('gone')",
        "csv.reader(io.StringIO(), dialect='none')",
        "plistlib.loads(b'x')",
        "uuid.UUID('x')",
    ),
]


def run_line(line: str) -> object:
    """Run one line with the modules that it names."""
    import importlib

    names: dict[str, Any] = {
        "import_module": importlib.import_module,
        "Decimal": importlib.import_module("decimal").Decimal,
    }
    for word in line.replace("(", " ").replace(".", " ").split():
        if word in sys.stdlib_module_names:
            names[word] = importlib.import_module(word)
    names["concurrent"] = importlib.import_module("concurrent.futures") and sys.modules["concurrent"]
    graph = {"a": ["b"], "b": ["a"]}
    names["graphlib_cycle"] = lambda: list(
        importlib.import_module("graphlib").TopologicalSorter(graph).static_order()
    )
    return eval(line, names)


MAKERS = [value for name, value in list(globals().items()) if name.startswith("of_")]
NEEDED = {"of_pillow": "PIL", "of_attrs": "attr"}


def raised(func: Callable[..., object], *arguments: object) -> BaseException:
    with pytest.raises(BaseException) as caught:
        func(*arguments)
    return caught.value


def here_and_there(func: Callable[..., object], *arguments: object) -> tuple[Any, Any]:
    """Return what is to be seen of what is raised here, and of what comes from a worker."""
    here = raised(func, *arguments)
    there = raised(lambda: list(parallel([arguments]).map(lambda given: func(*given))))
    if isinstance(here, StopIteration):
        there = there.__cause__
    (kind, *parts), (other, *others) = seen(here), seen(there)
    if "<locals>" in kind.__qualname__ or "Model" in str(parts):
        kind = other  # a class of its own at each call
    try:
        raise there
    except type(here):  # what a handler of the script's catches
        pass
    # A view of a mapping comes as a mapping.
    seen_here = kind, str(here), str(parts).replace("CIMultiDictProxy", "CIMultiDict")
    return seen_here, (type(there), str(there), str(others))


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
def test_what_a_package_raises_arrives_as_it_was(maker: Callable[[], object], cluster: Any) -> None:
    package = NEEDED.get(maker.__name__, maker.__name__.split("_")[1])
    if package in PACKAGES and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    here, there = here_and_there(maker)
    assert there == here


@pytest.mark.parametrize("line", PLAIN)
def test_what_the_standard_library_raises_arrives_as_it_was(line: str, cluster: Any) -> None:
    here, there = here_and_there(run_line, line)
    assert there == here


def test_what_cannot_be_pickled_in_an_exception_is_made_anew(cluster: Any) -> None:
    grpc = pytest.importorskip("grpc", reason="grpcio is not installed")
    error: Any = raised(lambda: list(parallel([0]).map(lambda _: of_grpc())))
    assert isinstance(error, grpc.RpcError)
    assert (error.code(), "failed to connect" in error.details()) == (grpc.StatusCode.UNAVAILABLE, True)


def made_by_pydantic_s_functions() -> object:
    import pydantic

    def call(number: int, *, kind: str) -> int:
        return number

    return pydantic.validate_call(call)(1, 2)  # type: ignore[call-arg, misc]


def test_what_an_error_quotes_need_not_be_picklable(cluster: Any) -> None:
    pydantic = pytest.importorskip("pydantic", reason="pydantic is not installed")
    error = raised(lambda: list(parallel([0]).map(lambda _: made_by_pydantic_s_functions())))
    assert isinstance(error, pydantic.ValidationError)
    here = raised(made_by_pydantic_s_functions)
    assert isinstance(here, pydantic.ValidationError)
    assert [e["type"] for e in error.errors()] == [e["type"] for e in here.errors()]


def test_attributes_that_are_exceptions_and_objects_stay_whole(cluster: Any) -> None:
    httpx = pytest.importorskip("httpx", reason="httpx is not installed")
    with pytest.raises(httpx.HTTPStatusError) as caught:
        list(parallel([0]).map(lambda _: of_httpx_status()))
    assert (caught.value.response.status_code, str(caught.value.request.url)) == (500, PORT)
    pydantic = pytest.importorskip("pydantic", reason="pydantic is not installed")
    with pytest.raises(pydantic.ValidationError) as invalid:
        list(parallel([0]).map(lambda _: of_pydantic()))
    assert [error["loc"] for error in invalid.value.errors()] == [("number",), ("names", 0)]


# Odd ones -----------------------------------------------------------------------------------------


class WithoutText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class TextOfItsOwn(Exception):
    def __init__(self, path: str, hidden: object) -> None:
        super().__init__(f"cannot read {path}")
        self.hidden = hidden

    def __str__(self) -> str:
        return f"{self.args[0]} after {self.hidden.tries} tries"  # type: ignore[attr-defined]


class Unpicklable:
    tries = 3

    def __reduce__(self) -> Any:
        raise TypeError("stays here")


def test_an_exception_whose_str_raises_arrives_as_what_it_is(cluster: Any) -> None:
    def fail(x: int) -> None:
        raise WithoutText(x)

    assert raised(lambda: list(parallel([7]).map(fail))).args == (7,)
    chain = parallel([7], on_error="skip").map(fail)
    assert list(chain) == []
    assert "WithoutText: <its str() failed>" in str(chain.errors[0])


def test_a_text_made_of_what_cannot_travel_is_kept(cluster: Any) -> None:
    def fail(x: str) -> None:
        raise TextOfItsOwn(x, Unpicklable())

    error = raised(lambda: list(parallel(["f"]).map(fail)))
    assert isinstance(error, TextOfItsOwn)
    assert str(error) == "cannot read f after 3 tries"


def test_a_hundred_thousand_causes_or_members_cost_seconds_at_most() -> None:
    import time

    chain: BaseException | None = None
    for number in range(100_000):
        error = ValueError(number)
        error.__cause__ = chain
        chain = error
    assert chain is not None
    started = time.perf_counter()
    assert str(Failure.of(chain, "a note").rebuild().__cause__) == "99998"
    while chain is not None:  # to let go of it at once is a recursion
        chain.__cause__, chain = None, chain.__cause__
    group = ExceptionGroup("many", [ValueError(number) for number in range(100_000)])
    copy: Any = Failure.of(group, "a note").rebuild()
    assert [error.args for error in copy.exceptions] == [(number,) for number in range(100_000)]
    assert time.perf_counter() - started < 10
