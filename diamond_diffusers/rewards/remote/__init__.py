"""The reward `remote`: scores by a service, and the ways of speaking to one."""

from .chat import AnswerReader, ChatCompletions, ExpectedGrade, NumberAnswer, YesProbability
from .limits import Retries, Timeouts
from .protocols import AnswerError, RemoteProtocol, ScoreService
from .reward import RemoteReward
from .usage import Prices, Usage

__all__ = [
    "AnswerError",
    "AnswerReader",
    "ChatCompletions",
    "ExpectedGrade",
    "NumberAnswer",
    "Prices",
    "RemoteProtocol",
    "RemoteReward",
    "Retries",
    "ScoreService",
    "Timeouts",
    "Usage",
    "YesProbability",
]
