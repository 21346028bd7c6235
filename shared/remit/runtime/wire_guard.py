"""Keeps one malformed message from deafening or deceiving a service: nats-py 2.16 trusts what agents may write on the wire.

The last token of `status.<agent>.<action_id>` and the headers of a request are the agent's. In nats-py, bytes that are no UTF-8
end the reading task until pings go unanswered, and a vertical tab in a subject is taken for the blank before the next field, so
that a message can be put into any subscription. The broker lets both through.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nats.protocol import parser

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

_FIELD, _BLANK = rb"([^ \t\r\n]+)", rb"[ \t]+"
_HEAD = _BLANK + _FIELD + _BLANK + rb"(\d+)" + _BLANK + rb"(" + _FIELD + _BLANK + rb")?"
MESSAGE = re.compile(rb"\AMSG" + _HEAD + rb"(\d+)\r\n")
MESSAGE_WITH_HEADERS = re.compile(rb"\AHMSG" + _HEAD + rb"(\d+)" + _BLANK + rb"(\d+)\r\n")
"""The protocol's own grammar: blanks are space and tab, nothing else (NATS client protocol). Groups as nats-py reads them."""


def guard(client: Client) -> None:
    """Make a connected client survive what it cannot read; a header block that is no header block counts as none."""
    parser.MSG_RE, parser.HMSG_RE = MESSAGE, MESSAGE_WITH_HEADERS
    original = client._process_headers  # noqa: SLF001  (nats-py offers no hook)

    async def process_headers(headers: bytes) -> dict[str, str] | None:
        try:
            return await original(headers)
        except (IndexError, UnicodeDecodeError):
            return None

    def build_message(sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None) -> Msg:
        return client.msg_class(
            subject=subject.decode(errors="replace"),
            reply=reply.decode(errors="replace"),
            data=data,
            headers=headers,
            _client=client,
            _sid=sid,
        )

    client._process_headers, client._build_message = process_headers, build_message  # noqa: SLF001  (as above)
