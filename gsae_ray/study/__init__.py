"""The paper's blinded human study as a tool: features are drawn pairwise, rated in a browser, and analysed.

Rajamanoharan et al. 2024, section 4 and its appendix on interpretability. `create`, `server` and `analysis` are its
three commands; all that a study is lies in one SQLite file (`database`).
"""
