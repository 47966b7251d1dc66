"""`python -m lightning_sparsity` is the command `lightning-sparsity`."""

from lightning_sparsity.cli import main

if __name__ == "__main__":
    main()
