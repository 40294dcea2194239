"""Small models that know the facts of a world, in one architecture each, trained here by one recipe.

Nothing is imported with the package: `families` is data, `recipe` and `store` bring torch and transformers.
"""
