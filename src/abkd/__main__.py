"""Entry point of ``python -m abkd``, also for ``accelerate launch -m abkd``."""

from abkd.cli import main

if __name__ == "__main__":
    main()
