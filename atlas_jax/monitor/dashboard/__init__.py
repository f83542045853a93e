"""A dashboard in the browser: reads run directories, and nothing else of a run.

`python -m atlas_jax.monitor.dashboard --runs=runs` starts it. Its pages are the files of `views`, found by
name; each says in charts and tables of plain data what a run shows (`charts`), which `figures` turns into
Plotly and `render` into Streamlit.
"""
