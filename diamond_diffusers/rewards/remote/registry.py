"""Protocols and readers of chats by name, for files that describe a remote reward."""

from __future__ import annotations

from typing import Any

from ...core.registry import Registry

PROTOCOLS: Registry[type[Any]] = Registry(
    "protocol", "remote_protocols", base="diamond_diffusers.rewards.remote.protocols:RemoteProtocol"
)
READERS: Registry[type[Any]] = Registry(
    "reader", "answer_readers", base="diamond_diffusers.rewards.remote.chat:AnswerReader"
)
