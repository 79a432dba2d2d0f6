"""The style sheet of the report."""

from serving.report.theme import FONT

STYLE = f"""
*{{box-sizing:border-box}}
body{{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 {FONT};-webkit-font-smoothing:antialiased}}
main{{max-width:1160px;margin:0 auto;padding:3.2rem 1.5rem 4rem}}
header{{max-width:52rem;margin-bottom:2.4rem}}
.kicker{{color:var(--muted);font-size:.875rem;margin:0 0 1rem}}
h1{{font-weight:400;font-size:clamp(1.6rem,3.6vw,2.35rem);line-height:1.22;letter-spacing:-.018em;margin:0;
  text-wrap:balance}}
h1 b{{color:var(--online);font-weight:650;white-space:nowrap}}
.lede{{color:var(--muted);font-size:1.02rem;margin:1rem 0 0;max-width:46rem}}
h2{{font-size:1.06rem;font-weight:650;letter-spacing:-.005em;margin:0}}
.sub{{color:var(--muted);font-size:.9rem;margin:.25rem 0 1rem;max-width:46rem}}
.alarm{{color:var(--bad);font-weight:600}}
.panel,.card{{background:var(--card);border:1px solid var(--rule);border-radius:14px}}
.panel{{padding:1.5rem 1.6rem;margin-bottom:1.1rem;min-width:0}}
.cards{{display:grid;grid-template-columns:repeat(6,1fr);gap:.8rem;margin-bottom:1.1rem}}
.card{{padding:1rem 1.1rem}}
.card p{{margin:0}}
.card .name{{color:var(--muted);font-size:.82rem}}
.card .value{{font-size:1.55rem;font-weight:600;letter-spacing:-.02em;line-height:1.35;
  font-variant-numeric:tabular-nums;white-space:nowrap}}
.card .note{{color:var(--muted);font-size:.76rem;line-height:1.35}}
.two,.pair{{display:grid;grid-template-columns:1fr 1fr;gap:0 1.1rem}}
.pair{{gap:1.6rem}}
svg{{width:100%;height:auto;display:block}}
.legend{{list-style:none;display:flex;flex-wrap:wrap;gap:.35rem 1.6rem;margin:1rem 0 0;padding:0;font-size:.85rem;
  color:var(--muted)}}
.legend b{{color:var(--ink);font-weight:600;margin-right:.2rem}}
.legend i,.figures i{{display:inline-block;width:.65rem;height:.65rem;border-radius:50%;margin-right:.5rem}}
.scroll{{overflow-x:auto}}
.slim{{display:none}}
table{{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}}
.figures th,.figures td{{padding:.55rem .6rem;text-align:right;border-top:1px solid var(--rule);white-space:nowrap}}
.figures thead th{{border:0;color:var(--muted);font-weight:500;font-size:.84rem}}
.figures th:first-child{{text-align:left;padding-left:0;font-weight:600}}
.figures .best{{font-weight:700;color:var(--online)}}
.account th{{text-align:left;font-weight:600;padding:.5rem 1rem .5rem 0;border-top:1px solid var(--rule);width:62%}}
.account th span{{color:var(--muted);font-weight:400;font-size:.86rem;margin-left:.7rem}}
.account td{{text-align:right;padding:.5rem .7rem;border-top:1px solid var(--rule);white-space:nowrap}}
.account .bar{{width:20%;padding-right:0}}
.account .bar i.none{{display:none}}
.account .bar i{{display:block;height:.6rem;border-radius:3px;min-width:2px}}
dl{{margin:.8rem 0 0}}
dt{{font-weight:600;font-size:.92rem}}
dd{{margin:0 0 .8rem;color:var(--muted);font-size:.92rem}}
footer{{color:var(--muted);font-size:.84rem;margin-top:1.6rem}}
footer dl div{{display:flex;gap:1rem;padding:.28rem 0}}
footer dt{{flex:0 0 8rem;font-size:.84rem;font-weight:500}}
footer dd{{margin:0;font-size:.84rem;color:var(--ink);overflow-wrap:anywhere}}
code{{font:.92em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;color:var(--ink)}}
@media (max-width:900px){{.cards{{grid-template-columns:repeat(3,1fr)}}.two,.pair{{grid-template-columns:1fr}}}}
@media (max-width:600px){{.broad{{display:none}}.slim{{display:block}}}}
@media (max-width:520px){{.cards{{grid-template-columns:1fr 1fr}}main{{padding:1.6rem .9rem}}.panel{{padding:1.1rem}}
  .account th span{{display:block;margin:0}}.account .bar{{display:none}}}}
@media print{{main{{padding:0;max-width:none}}.panel,.card{{break-inside:avoid}}}}
"""
