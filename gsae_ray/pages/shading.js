"use strict";
// A text whose tokens are shaded by how active a feature is on each: shades from 0 to 1, the token at `peak` underlined.
// `told`, where it is given, says of a place what is shown when a pointer rests on its token.
function shaded(tokens, shades, peak, told) {
  const line = document.createElement("span");
  line.className = "text";
  line.dir = "auto";
  tokens.forEach((token, place) => {
    const visible = token.replace(/\n/g, "\u21b5\n");
    if (!(shades[place] > 0)) {
      line.append(visible);
      return;
    }
    const mark = document.createElement("mark");
    mark.textContent = visible;
    mark.style.setProperty("--shade", String(0.15 + 0.85 * shades[place]));
    if (place === peak) mark.className = "peak";
    if (told) mark.title = told(place);
    line.append(mark);
  });
  return line;
}
