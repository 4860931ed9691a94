"""`python -m scalar_sae` is the command `scalar`."""

from scalar_sae.cli import main

if __name__ == "__main__":
    main()
