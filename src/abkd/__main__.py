"""``python -m abkd``: what ``accelerate launch -m abkd`` starts."""

from abkd.cli import main

if __name__ == "__main__":
    main()
