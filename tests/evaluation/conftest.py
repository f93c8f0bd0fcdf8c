# The commands ask accelerate for the processes too.
from ..training.conftest import fresh_accelerate  # noqa: F401
