"use strict";
// Draw attention on a canvas over an image that is shown with `object-fit: contain`: the less a patch is attended to, the darker it is, and
// what no patch covers is darkest (page.css).
// percent: of the largest, row by row; area: the part of the image that the patches cover, as shares of its width and height.
function drawVeil(veil, image, percent, [left, top, right, bottom]) {
  const side = Math.sqrt(percent.length), drawing = veil.getContext("2d");
  veil.width = veil.height = side;
  const data = drawing.createImageData(side, side);
  percent.forEach((value, i) => { data.data[4 * i + 3] = 2.2 * (100 - value); });
  drawing.putImageData(data, 0, 0);
  const [width, height] = [image.naturalWidth, image.naturalHeight], scale = Math.min(image.clientWidth / width, image.clientHeight / height);
  const x = image.offsetLeft + (image.clientWidth - width * scale) / 2, y = image.offsetTop + (image.clientHeight - height * scale) / 2;
  const place = {left: x + left * width * scale, top: y + top * height * scale};
  const size = {width: (right - left) * width * scale, height: (bottom - top) * height * scale};
  Object.entries({...place, ...size}).forEach(([name, value]) => { veil.style[name] = `${value}px`; });
}
