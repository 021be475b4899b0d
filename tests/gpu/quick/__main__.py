import sys

from tests.gpu.quick.cli import main

sys.exit(main())
