"""The ZipCache paper's tables and figures on your own model: `python -m zipcache_rt.report MODEL --out DIR [--quick]`.

Reading order: plan.py (what is shown, as data), measure.py (fills the store), findings.py (reads it), tables.py and
figure*.py (draw), page.py (one HTML page).
"""

from .build import build
from .plan import ARTEFACTS, FULL, QUICK, Size

__all__ = ["ARTEFACTS", "FULL", "QUICK", "Size", "build"]
