"use strict";
// Draws every chart whose place and specification are in the page. A chart that cannot be drawn
// leaves what stands there without scripts.
(() => {
  const { config, charts } = JSON.parse(document.getElementById("charts").textContent);

  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  tip.setAttribute("role", "tooltip");
  document.body.append(tip);

  function showTip(_handler, event, _item, value) {
    tip.hidden = value === null || value === undefined || value === "";
    if (tip.hidden) return;
    const rows = typeof value === "object" ? Object.entries(value) : [["", String(value)]];
    tip.replaceChildren(
      ...rows.map(([key, text]) => {
        const row = document.createElement("div");
        const name = document.createElement("span");
        name.textContent = key;
        row.append(name, String(text));
        return row;
      }),
    );
    const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
    const isLow = event.clientY + 18 + tip.offsetHeight > innerHeight;
    const top = isLow ? event.clientY - tip.offsetHeight - 10 : event.clientY + 18;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${Math.max(8, top)}px`;
  }
  addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

  // A chart in a folded part had no width when it was drawn.
  addEventListener("toggle", () => { dispatchEvent(new Event("resize")); }, true);

  const refuse = () => Promise.reject(new Error("this page loads nothing"));
  const loader = { load: refuse, sanitize: refuse, http: refuse, file: refuse };

  for (const holder of document.querySelectorAll("[data-chart]")) {
    const place = holder.closest(".either");
    place.classList.add("drawn"); // now, as a chart asks how wide its place is
    const view = () => {
      const spec = charts[holder.dataset.chart];
      const isLite = spec.$schema.includes("vega-lite");
      const program = isLite ? vegaLite.compile(spec, { config }).spec : spec;
      const parsed = vega.parse(program, isLite ? undefined : config, { ast: true });
      return new vega.View(parsed, {
        renderer: "svg",
        expr: vegaInterpreter.expressionInterpreter,
        tooltip: showTip,
        logLevel: vega.Error,
        loader,
      });
    };
    Promise.resolve()
      .then(() => view().initialize(holder).hover().runAsync())
      .then(() => { holder.dataset.state = "drawn"; })
      .catch((error) => {
        holder.dataset.state = "failed";
        holder.dataset.error = String(error);
        place.classList.remove("drawn");
      });
  }
})();
