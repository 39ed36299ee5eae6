for (const svg of document.querySelectorAll("svg[data-readout]")) {
  const data = JSON.parse(svg.dataset.readout), hair = svg.querySelector(".hair");
  const line = document.createElement("p");
  line.className = "readout";
  svg.after(line);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), at = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    let best = 0;
    data.px.forEach((x, i) => { if (Math.abs(x - at) < Math.abs(data.px[best] - at)) best = i; });
    hair.setAttribute("x1", data.px[best]);
    hair.setAttribute("x2", data.px[best]);
    hair.style.visibility = "visible";
    const values = data.names.map((name, i) => name + " " + (data.y[i][best] || "\u2013"));
    line.textContent = "step " + data.x[best] + ": " + values.join(", ");
  });
  svg.addEventListener("pointerleave", () => { hair.style.visibility = "hidden"; line.textContent = ""; });
}
const unfold = document.getElementById("unfold");
unfold.hidden = false;
unfold.addEventListener("click", () => {
  const texts = [...document.querySelectorAll("#rollouts details")], open = texts.some((d) => !d.open);
  texts.forEach((d) => { d.open = open; });
  unfold.textContent = open ? "Fold all" : "Unfold all";
});
