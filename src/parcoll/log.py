"""Logger `parcoll`: silent until the program that uses parcoll configures logging."""

from __future__ import annotations

import logging

logger = logging.getLogger("parcoll")
logger.addHandler(logging.NullHandler())
