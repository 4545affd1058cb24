"""Pictures of runs, sweeps, landscapes and Gaussians, by matplotlib.

Each function draws into the current axes, or those given as `ax`, and returns them, to be
labelled, scaled and saved as any others. One style for all: colours that every colour vision tells
apart, with dashes and markers beside them for print; `style()` is the same for one's own pictures.
"""

from bwflow.plotting._gaussians import ellipses as ellipses
from bwflow.plotting._gaussians import geodesic_spectra as geodesic_spectra
from bwflow.plotting._gaussians import movie as movie
from bwflow.plotting._gaussians import slices as slices
from bwflow.plotting._landscape import landscape as landscape
from bwflow.plotting._runs import alignment as alignment
from bwflow.plotting._runs import gap as gap
from bwflow.plotting._runs import spectrum as spectrum
from bwflow.plotting._studies import convergence as convergence
from bwflow.plotting._studies import gap_bands as gap_bands
from bwflow.plotting._style import style as style
from bwflow.plotting._sweeps import bands as bands
from bwflow.plotting._sweeps import phases as phases
from bwflow.plotting._sweeps import survival as survival

__all__ = [
    "alignment",
    "bands",
    "convergence",
    "ellipses",
    "gap",
    "gap_bands",
    "geodesic_spectra",
    "landscape",
    "movie",
    "phases",
    "slices",
    "spectrum",
    "style",
    "survival",
]
