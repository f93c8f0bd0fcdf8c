"""The command line as a module, for `accelerate launch -m diamond_diffusers`."""

from .cli.main import main

if __name__ == "__main__":
    main()
