"""Settings of Sphinx, which builds these pages: `sphinx-build -W docs build/docs`."""

from gsae_ray.version import __version__

project = "gsae-ray"
release = __version__
extensions = ["myst_parser"]
myst_heading_anchors = 3
html_theme = "alabaster"
html_theme_options = {"description": "Sweeps of sparse autoencoders that share one pass over the language model"}
html_sidebars = {"**": ["about.html", "navigation.html", "searchbox.html"]}
html_show_copyright = False
