import sys

if sys.version_info < (3, 11):  # noqa: UP036 - an older one must get this line, not a traceback
    print("this needs Python 3.11 or newer, not %s" % sys.version.split()[0])  # noqa: UP031
    sys.exit(2)

from tests.gpu.quick.cli import main

sys.exit(main())
