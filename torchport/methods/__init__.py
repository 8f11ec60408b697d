"""The polar factor U of `A = U P` by several methods, one file each with its forward pass and its adjoint.

    spectral.py      singular values, or the eigendecomposition of AᵀA
    warm.py          the eigenbasis of an earlier, similar problem, corrected by products
    matmul.py        products alone, for accelerators
    trust_region.py  the paper's method, for comparisons
    decompose.py     chooses a method, and another one if that is not accurate enough
    autograd.py      the factor as a differentiable function, also under `torch.compile` and `torch.func`

Differentiating `A = U P` under `UᵀU = I` gives, for a cotangent G of U,

    P Φ + Φ P = UᵀG − GᵀU,    Ā = U Φ + (I − UUᵀ) G P⁻¹,

a self-adjoint linear map of G, so that the same formula pushes tangents of A forward. Source: Gould, Hartley &
Campbell, *Deep Declarative Networks* (2021), proposition 4.5; docs/mathematics.md derives the closed form.
"""
