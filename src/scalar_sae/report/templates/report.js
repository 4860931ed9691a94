"use strict";
for (const figure of document.querySelectorAll("script.figure")) {
  const plot = document.createElement("div");
  figure.replaceWith(plot);
  Plotly.newPlot(plot, { ...JSON.parse(figure.textContent), config: { displayModeBar: false, responsive: true } });
}
