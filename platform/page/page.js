"use strict";
// Colours of text and lines are the page's, so that figures follow it into the dark.
const figures = JSON.parse(document.getElementById("figures").textContent);
const plots = [...document.querySelectorAll(".plot")];
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const config = {responsive: true, displayModeBar: false, displaylogo: false, scrollZoom: false};

function paint(layout) {
  const style = getComputedStyle(document.documentElement);
  const [text, soft, line, card] = ["--text", "--soft", "--line", "--card"].map((name) => style.getPropertyValue(name).trim());
  const painted = {...layout, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)"};
  painted.font = {...layout.font, color: text};
  painted.hoverlabel = {...layout.hoverlabel, bgcolor: card, bordercolor: line, font: {color: text}};
  for (const name of Object.keys(layout).filter((name) => /^[xy]axis\d*$/.test(name))) {
    painted[name] = {...layout[name], gridcolor: line, linecolor: line, zerolinecolor: line, tickfont: {color: soft}};
  }
  return painted;
}

function draw(plot) {
  const {data, layout} = figures[Number(plot.dataset.figure)];
  return Plotly.react(plot, data, paint(layout), config);
}

plots.forEach(draw);
dark.addEventListener("change", () => plots.forEach(draw));
// What was drawn while its fold was closed had no width to fill.
document.querySelectorAll("details").forEach((fold) => {
  fold.addEventListener("toggle", () => fold.querySelectorAll(".plot").forEach((plot) => Plotly.Plots.resize(plot)));
});
