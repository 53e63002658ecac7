"""In one process with other numerical libraries, imported before or after.

Usage, from the folder tests: python -m trust.neighbours NAME... with cnn_ext among them
"""

from __future__ import annotations

import importlib
import sys
from concurrent.futures import ThreadPoolExecutor


def use(name: str) -> None:
    """Make a library start its threads."""
    import numpy as np

    a = np.random.default_rng(0).standard_normal((200, 200))
    if name == "numpy":
        assert np.isfinite(a @ a).all()
    elif name == "torch":
        import torch

        t = torch.from_numpy(a).float()[None, None]
        y = torch.nn.functional.conv2d(t, t[:, :, :5, :5])
        assert bool(torch.isfinite(y).all())
    elif name == "sklearn":
        from sklearn.ensemble import HistGradientBoostingClassifier

        model = HistGradientBoostingClassifier(max_iter=1)
        assert model.fit(a, a[:, 0] > 0).score(a, a[:, 0] > 0) > 0.5
    elif name == "cnn_ext":
        from trust.children import work

        DIGESTS.append(work())


DIGESTS: list[str] = []


def main(names: list[str]) -> None:
    for name in names:
        importlib.import_module(name)
    for name in names * 2:
        use(name)
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(use, names))
    assert len(set(DIGESTS)) == 1, DIGESTS
    print(DIGESTS[0])


if __name__ == "__main__":
    main(sys.argv[1:])
