"""Logger `parcoll`: silent until the program that uses parcoll configures logging.

Each of its messages is one line, whatever is in the names and texts of users that it quotes.
"""

from __future__ import annotations

import logging

from parcoll.text import escaped


def _in_one_line(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    if not message.isprintable():
        record.msg, record.args = escaped(message), ()
    return True


logger = logging.getLogger("parcoll")
logger.addHandler(logging.NullHandler())
logger.addFilter(_in_one_line)
