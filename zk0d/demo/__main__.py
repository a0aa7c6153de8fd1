"""`python -m zk0d.demo`."""

import sys

from zk0d.demo.main import main

sys.exit(main())
