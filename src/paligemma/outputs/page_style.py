"""The one style of all pages: light and dark, from a phone to a wide screen."""

STYLE = """
:root{--paper:#f6f5f1;--card:#fff;--ink:#1f2328;--quiet:#646c78;--line:#e2e0d9;--fill:#edebe4;
--ours:#0b6e99;--soft:#bcdcea;--theirs:#b45309;--good:#1a7f4b;--bad:#b3261e}
@media (prefers-color-scheme:dark){:root{--paper:#14161a;--card:#1c1f25;--ink:#e8eaee;
--quiet:#9aa3b0;--line:#2d323b;--fill:#262a32;--ours:#5cc0ec;--soft:#23485a;--theirs:#f0a35e;
--good:#5fd39a;--bad:#ff8a80}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
main{max-width:68rem;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.75rem;line-height:1.2;margin:0;letter-spacing:-.015em}
h2{font-size:1.1rem;margin:2.75rem 0 .8rem;letter-spacing:-.005em}
p{margin:.35rem 0}
.quiet,figcaption,dt,th{color:var(--quiet)}
.lead{margin-bottom:1.5rem;overflow-wrap:anywhere}
.lead b{color:var(--ink);font-weight:600}
.card{background:var(--card);border:1px solid var(--line);border-radius:.75rem;padding:1rem 1.15rem}
.cards{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(min(15rem,100%),1fr))}
.cards>:only-child{max-width:34rem}
.cards.two{grid-template-columns:repeat(auto-fill,minmax(min(28rem,100%),1fr));align-items:start}
.cards.wide{grid-template-columns:repeat(auto-fit,minmax(min(21rem,100%),1fr))}
.cards.tiles{grid-template-columns:repeat(auto-fill,minmax(min(19rem,100%),1fr));align-items:start}
.big{font-size:2.6rem;line-height:1.1;font-weight:650;letter-spacing:-.03em;
font-variant-numeric:tabular-nums;margin:.15rem 0 .3rem}
.head{border-top:3px solid var(--ours)}.head .quiet{overflow-wrap:anywhere}
.name{font-weight:600;overflow-wrap:anywhere}
.up{color:var(--good)}.down{color:var(--bad)}
.scroll{overflow-x:auto;padding:0}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th{font-weight:500;font-size:.82rem;text-align:right;white-space:nowrap}
th,td{padding:.42rem .8rem;border-bottom:1px solid var(--line)}
tr:last-child td{border-bottom:0}
td{text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left;white-space:normal;overflow-wrap:anywhere;
min-width:7rem}
tr.by td{color:var(--quiet);font-size:.82rem;padding-top:.9rem}
td.bar{min-width:7rem;width:28%}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{fill:var(--quiet);font-size:11px;font-family:inherit}
.axis{stroke:var(--line)}.rail{fill:var(--fill)}.ours{fill:var(--ours)}.span{fill:var(--soft)}
.theirs{fill:var(--theirs)}.line{max-width:24rem}.plot{max-width:34rem;margin:0 auto}
.even{stroke:var(--quiet);stroke-dasharray:3 4}
.curve{fill:none;stroke:var(--ours);stroke-width:1.6}
.curve.theirs{stroke:var(--theirs)}.curve.span{stroke:var(--soft)}
td.right{color:var(--good);font-weight:600}td.wrong{color:var(--bad)}
.gap{fill:var(--theirs);opacity:.28}.whisker{stroke:var(--ours);stroke-width:1.5}
figure{margin:0}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;margin-top:.6rem;font-size:.82rem}
.legend span{display:inline-flex;align-items:center;gap:.4rem}
.legend svg{width:.7rem;height:.7rem}
figcaption{font-size:.85rem;margin-top:.6rem}
.tile{padding:0;overflow:hidden}
.tile img{display:block;width:100%;height:auto;background:var(--fill)}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(45%,1fr));gap:1px;
background:var(--line)}
.pair figcaption{margin:0;padding:.15rem .6rem;background:var(--card);font-size:.75rem}
.tile dl{padding:.7rem 1.15rem 1rem}
dl{display:grid;grid-template-columns:auto minmax(0,1fr);gap:.3rem .9rem;margin:0}
dt{font-size:.82rem;padding-top:.1rem}
dd{margin:0;overflow-wrap:anywhere;white-space:pre-wrap;max-height:13rem;overflow-y:auto}
.said{font-weight:600}
.counts dd{text-align:right;font-weight:600;font-variant-numeric:tabular-nums}
.notes{margin-top:.9rem;font-size:.9rem}
.tag{float:right;font-size:.82rem;font-variant-numeric:tabular-nums;color:var(--quiet)}
.id{padding:.7rem 1.15rem 0;font-size:.82rem;overflow-wrap:anywhere}
.won{border-top:3px solid var(--good)}.lost{border-top:3px solid var(--bad)}
pre{margin:0;overflow-x:auto;font:.86rem/1.55 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;
white-space:pre-wrap;overflow-wrap:anywhere}
ul{margin:.3rem 0;padding-left:1.2rem}
details{margin-top:1rem}
summary{cursor:pointer;font-weight:600}
details pre{margin-top:.7rem}
.empty{padding:2.2rem 1rem;text-align:center;background:var(--fill);color:var(--quiet);
font-size:.85rem}
@media (max-width:34rem){main{padding:1.3rem .9rem 3rem}th,td{padding:.38rem .5rem}
.big{font-size:2.2rem}td.bar{min-width:5rem}.roomy{display:none}
table{font-size:.88rem}th,td{white-space:normal}th:first-child,td:first-child{min-width:5.5rem}}
@media print{body{background:#fff}.card{break-inside:avoid}.scroll,dd,pre{overflow:visible;
max-height:none}.scroll{break-inside:auto}tr{break-inside:avoid}th.roomy,td.roomy{display:table-cell}
p.roomy{display:block}h2{break-after:avoid}table{font-size:.8rem}th,td{padding:.25rem .4rem}
.cards.two,.cards.tiles{grid-template-columns:1fr 1fr}}
"""
