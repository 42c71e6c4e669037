"""An answer on its way out: tokens to text in stages, the choices of one answer, its deadline."""
