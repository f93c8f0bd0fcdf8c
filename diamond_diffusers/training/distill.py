"""Distils a Posterior Diamond Map: `accelerate launch -m diamond_diffusers.training.distill --help`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from .options.parser import parse_options

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: distils a map, saves it, and pushes it if the options say so."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = parse_options(arguments)
    # These imports take seconds, which a page of help or a mistyped option should not.
    from ..core.memory_errors import want_of_memory
    from ..files.foreign import ForeignFileError
    from .errors import TrainingError
    from .trainer import Trainer

    try:
        Trainer(options).run()
    except (TrainingError, ForeignFileError, OSError) as error:
        logger.debug("stopped", exc_info=True)
        sys.exit(f"error: {error}")
    except (RuntimeError, MemoryError) as error:
        reason = want_of_memory(error)
        if reason is None:
            raise
        sys.exit(f"error: {reason}; lower --train_batch_size, --resolution or --rank, or add --gradient_checkpointing")


if __name__ == "__main__":
    main()
