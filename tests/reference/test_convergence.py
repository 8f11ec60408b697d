import numpy as np
import pytest

from nearest_etf.reference.convergence import PictureError, convergence, picture_format, plot_convergence


@pytest.mark.parametrize(("d", "K"), [(16, 4), (3, 4)])
def test_both_subproblems_end_at_a_certified_minimiser(d, K):
    curves = convergence(d, K)
    assert set(curves) == {"truncated-cg", "exact"}
    for curve in curves.values():
        gaps, norms = np.array(curve).T
        assert gaps[0] > 1e-2
        assert abs(gaps[-1]) < 1e-12
        assert norms[-1] < 1e-12


def test_pictures_are_written_in_the_format_of_their_suffix(tmp_path):
    pytest.importorskip("matplotlib")
    plot_convergence(tmp_path / "convergence.PNG", 8, 3)
    assert (tmp_path / "convergence.PNG").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["convergence.PNG"]
    with pytest.raises(PictureError, match=r"ends in '\.txt'; expected a picture, one of .*png"):
        picture_format(tmp_path / "convergence.txt")
