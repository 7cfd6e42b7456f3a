from __future__ import annotations

import sys

from .write import main

sys.exit(main())
