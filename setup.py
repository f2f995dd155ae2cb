"""What pyproject.toml cannot say: data/ and notebooks/ stand at the top of the checkout and go into the wheel inside
minglm."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[
        *find_namespace_packages(include=["minglm*", "sim*"], exclude=["*__pycache__*"]),
        "minglm._data",
        "minglm._notebooks",
    ],
    package_dir={"minglm._data": "data", "minglm._notebooks": "notebooks"},
    package_data={
        "minglm": [
            "py.typed",
            "course/assets/*",
            "inference/*.c",
            "model/*.c",
            "quant/*.c",
            "runtime/*.h",
            "training/*.c",
        ],
        "sim": ["py.typed"],
        "sim.report": ["static/*"],
        "sim.dashboard": ["static/*"],
        "minglm._data": [f"**/*.{kind}" for kind in ("yaml", "json", "csv", "md", "gz", "txt")]
        + ["**/NOTICE", "**/LICENSE*", "**/SHA256SUMS"],
        "minglm._notebooks": [f"**/*.{kind}" for kind in ("ipynb", "json", "md")],
    },
    exclude_package_data={"minglm._notebooks": ["**/.ipynb_checkpoints/*"]},
)
