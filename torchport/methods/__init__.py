"""The polar factor `A = U P` by several methods, one file each with its forward and its adjoint.

    spectral.py      singular values, or the eigendecomposition of AᵀA
    warm.py          an earlier, similar problem's eigenbasis, made good by products
    matmul.py        products alone, for accelerators
    trust_region.py  the paper's way, for comparisons
    decompose.py     chooses a method and replaces one that lost its digits
    autograd.py      makes the factor a differentiable function, under `torch.compile` and `torch.func` too

Differentiating `A = U P` under `UᵀU = I` gives, for a cotangent G of U,

    P Φ + Φ P = UᵀG − GᵀU,    Ā = U Φ + (I − UUᵀ) G P⁻¹,

a symmetric map of G, so that tangents of A are pushed forward by the same formula. Source: Gould, Hartley & Campbell,
*Deep Declarative Networks* (2021), proposition 4.5, of which this is the closed form.
"""
