"""The child of a GPU over the stub of libcuda and the real NIXL: until the sums' kernel is merged."""

import sys

from sidecar.engines.cuda.libcuda import LibCuda
from sidecar.engines.cuda.process import main
from tests.support import stand_in_sums

stand_in_sums.install(LibCuda)
main(LibCuda(), sys.argv[1:])
