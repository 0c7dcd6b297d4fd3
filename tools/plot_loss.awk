# Draws the losses of a metrics.jsonl, smoothed over the last 10 steps, as a curve of plain characters.

match($0, /"loss": *[-+0-9.eE]+/) {
  value = substr($0, RSTART, RLENGTH)
  sub(/.*: */, "", value)
  loss[++count] = value + 0
}

END {
  width = 64
  height = 12
  if (count < 2) exit
  if (count < width) width = count
  for (x = 1; x <= width; x++) {
    last = int(x * count / width)
    first = last > 10 ? last - 9 : 1
    sum = 0
    for (i = first; i <= last; i++) sum += loss[i]
    y[x] = sum / (last - first + 1)
    if (x == 1 || y[x] > high) high = y[x]
    if (x == 1 || y[x] < low) low = y[x]
  }
  range = high > low ? high - low : 1
  for (row = height; row >= 0; row--) {
    line = sprintf("%7.3f |", low + range * row / height)
    for (x = 1; x <= width; x++) line = line (int((y[x] - low) / range * height + 0.5) == row ? "*" : " ")
    sub(/ +$/, "", line)
    print line
  }
  line = "        +"
  for (x = 1; x <= width; x++) line = line "-"
  print line
  printf "         1%" (width - 1) "d\n", count
}
