"""A GPU's child over the stub of libcuda: until the sums' kernel is merged."""

import sys

from sidecar.engines.cuda.libcuda import LibCuda
from sidecar.engines.cuda.process import main
from tests.support import stand_in_sums

stand_in_sums.install(LibCuda)
main(LibCuda(), sys.argv[1:])
