"""What can be read at a site in addition to its activation."""

from dataclasses import dataclass

from scalar_sae.sites import Site


@dataclass(frozen=True)
class Gradient:
    """The gradient of the language model's next-token loss, summed over tokens, with respect to the activation at a
    site.
    """

    site: Site

    def __str__(self) -> str:
        return f"gradient at {self.site}"
