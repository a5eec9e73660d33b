"""``python -m lit_robust``, the same as ``lit-robust``."""

from lit_robust.cli import main

if __name__ == "__main__":
    main()
