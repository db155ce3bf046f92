"""First step of an image build: refuses a base image that is not pinned by digest.

A tag can be moved to other content between two builds; a digest cannot. ALLOW_UNPINNED_BASE=1 lets a trial build through and says so.
"""

from __future__ import annotations

import os
import re
import sys

_PINNED = re.compile(r".+@sha256:[0-9a-f]{64}\Z")


def main() -> int:
    """Read BASE_IMAGE and ALLOW_UNPINNED_BASE, as build arguments put them into the environment."""
    base = os.environ.get("BASE_IMAGE", "")
    if _PINNED.match(base):
        return 0
    if os.environ.get("ALLOW_UNPINNED_BASE") == "1":
        print(f"base image {base!r} is not pinned by digest: for trying out only", file=sys.stderr)
        return 0
    print(
        f"base image {base!r} is not pinned by digest; pass --build-arg BASE_IMAGE=<name>@sha256:<digest>, "
        "or --build-arg ALLOW_UNPINNED_BASE=1 to try out",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
