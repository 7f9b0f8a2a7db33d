"use strict";
// Draws the interactive pictures in the places of the still ones, which stay wherever anything is missing for it.
(async () => {
  if (!("DecompressionStream" in window)) return;
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (letter) => letter.charCodeAt(0));
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const script = document.createElement("script");
  script.textContent = await new Response(unpacked).text();
  document.head.append(script);

  const source = document.getElementById("figures").textContent;
  const { night } = JSON.parse(source);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)").matches; // where dragging is for scrolling
  const modeBarButtons = [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]];
  const config = { responsive: true, displaylogo: false, displayModeBar: touch || "hover", modeBarButtons };

  const inTheDark = (key, value) =>
    /color$/.test(key) && typeof value === "string"
      ? value.replace(/^#[0-9A-F]{6}/, (color) => night[color] ?? color)
      : value;

  const draw = async () => {
    const { figures: pictures } = JSON.parse(source, dark.matches ? inTheDark : undefined);
    for (const [name, figures] of Object.entries(pictures)) {
      const places = document.getElementById(`plots-${name}`);
      const figure = places.closest("figure");
      figure.classList.add("drawn");
      try {
        for (const [i, { data, layout }] of figures.entries()) {
          if (touch) layout.dragmode = false;
          await Plotly.react(places.children[i], data, layout, config);
        }
      } catch (error) {
        figure.classList.remove("drawn");
        console.error(error);
      }
    }
  };
  await draw();
  dark.addEventListener("change", draw);
})();
