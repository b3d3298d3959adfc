"""Settings of Sphinx, which builds these pages: `sphinx-build -W docs build/docs`."""

from gsae_ray.version import __version__

project = "gsae-ray"
release = __version__
extensions = ["myst_nb"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks are stored with their outputs: contributing.md
html_theme = "alabaster"
html_theme_options = {"description": "Sweeps of sparse autoencoders that share one pass over the language model"}
html_sidebars = {"**": ["about.html", "navigation.html", "searchbox.html"]}
html_show_copyright = False
