"""Several runs of one recipe, one after the other, over seeds and settings (``abkd distill --seeds --grid``)."""

from abkd.sweep._plan import Run, plan, read_seeds, settings_of
from abkd.sweep._run import SWEEP_FILE, sweep, sweep_settings

__all__ = ["SWEEP_FILE", "Run", "plan", "read_seeds", "settings_of", "sweep", "sweep_settings"]
