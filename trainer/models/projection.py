"""Projections of teacher vectors to the student's space (W_i of the paper).

Shape legend: E_m width of teacher m, E news width of the student.
"""

from collections.abc import Sequence

from torch import Tensor, nn


class TeacherProjections(nn.Module):
    """One Linear with bias per teacher, for the *teacher's* vectors, trained with the student.

    Stage I uses one set for titles and bodies. Stage II uses one set for news and one for user
    vectors (the paper's W_n and W_u), or the same set for both (``loss.shared_projection``, the
    released code).
    """

    def __init__(self, teacher_dims: Sequence[int], student_dim: int):
        """Create Xavier-initialised projections with zero bias.

        Args:
            teacher_dims: Width E_m of every teacher's vectors, in the teachers' order.
            student_dim: Width E of the student's vectors.
        """
        super().__init__()
        layers = [nn.Linear(width, student_dim) for width in teacher_dims]
        self.layers = nn.ModuleList(layers)
        for layer in layers:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, teacher_vectors: Sequence[Tensor]) -> list[Tensor]:
        """Project the vectors of every teacher.

        Args:
            teacher_vectors: For every teacher a tensor ``[..., E_m]``, in the teachers' order.

        Returns:
            For every teacher a tensor ``[..., E]``.
        """
        return [layer(vectors) for layer, vectors in zip(self.layers, teacher_vectors, strict=True)]
