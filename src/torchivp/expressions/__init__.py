"""Formulas in words: text such as `alpha*prey - beta*prey*predator`, read safely and computed by PyTorch."""

from torchivp.expressions.expression import Expression, compile_expressions
from torchivp.expressions.grammar import CONSTANTS, FUNCTIONS, ExpressionError

__all__ = ["CONSTANTS", "FUNCTIONS", "Expression", "ExpressionError", "compile_expressions"]
