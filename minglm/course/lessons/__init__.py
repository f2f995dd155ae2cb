"""Pictures, sliders and small experiments of the notebooks: what would be a screenful of plotting in a cell lives here.

Torch is imported only by the modules that compute (`experiments`); the pictures need plotly or nothing at all.
"""
