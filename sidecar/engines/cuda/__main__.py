import sys

from sidecar.engines.cuda.libcuda import LibCuda
from sidecar.engines.cuda.process import main

main(LibCuda(), sys.argv[1:])
