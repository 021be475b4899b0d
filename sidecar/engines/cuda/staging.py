"""A buffer on the GPU through which short runs go, so that the link sees a few long ones."""

from sidecar.engines.cuda.driver import Driver, DriverError
from sidecar.engines.cuda.kernel_table import KernelTable
from sidecar.engines.cuda.plan import STEP_BYTES


class Staging:
    """`buffer` (STEP_BYTES of device memory), and what fills or empties it.

    One step at a time: the next may be begun when the last one has ended on the GPU.
    """

    def __init__(self, driver: Driver) -> None:
        """Raises DriverError."""
        self._driver = driver
        self.buffer = driver.allocate(STEP_BYTES)
        try:
            self._table = KernelTable(driver)
        except DriverError:
            driver.free(self.buffer)
            raise
        self.copy_runs = self._table.copy_runs

    def free(self) -> None:
        """Nothing uses it any more. Raises DriverError."""
        self._table.free()
        self._driver.free(self.buffer)
