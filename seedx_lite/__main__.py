"""`python -m seedx_lite`: see `seedx_lite.cli`."""

from seedx_lite.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
