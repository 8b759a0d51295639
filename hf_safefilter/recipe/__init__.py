"""Recipe: everything that a run depends on, in one strict YAML file.

An unknown key is refused, and the most similar key is suggested. `Recipe.schema_json()` returns the JSON schema. A card
holds the recipe of the run that it describes, and `Recipe.from_card` reads it back.
"""

from hf_safefilter.recipe.choices import MethodChoice
from hf_safefilter.recipe.selection import OF_THE_REST, SelectionRule
from hf_safefilter.recipe.whole import EXAMPLE, Recipe

__all__ = ["EXAMPLE", "OF_THE_REST", "MethodChoice", "Recipe", "SelectionRule"]
