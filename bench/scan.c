/* The best vfio_pci alias for a device, found by reading all of modules.alias: the way libvirt has
 * done it since 10.0 (virPCIDeviceFindBestVFIOVariant() in its src/util/virpci.c), without that one's
 * limit of 8 MiB. The pattern with the fewest wildcards is the best. */

#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *read_all(const char *path)
{
	FILE *file = fopen(path, "r");
	char *text;
	long size;

	if (!file)
		return NULL;
	fseek(file, 0, SEEK_END);
	size = ftell(file);
	rewind(file);
	text = malloc(size + 1);
	if (text)
		text[fread(text, 1, size, file)] = '\0';
	fclose(file);
	return text;
}

static int count_wildcards(const char *pattern)
{
	int count = 0;

	for (; *pattern; pattern++)
		count += *pattern == '*';
	return count;
}

int scan(const char *path, const char *modalias, char *name, int size)
{
	static const char prefix[] = "alias vfio_pci:";
	char *text = read_all(path);
	char *line, *next;
	int best = -1;

	if (!text)
		return -1;
	for (line = text; line && *line; line = next) {
		char pattern[256], module[64];

		next = strchr(line, '\n');
		if (next)
			*next++ = '\0';
		if (strncmp(line, prefix, sizeof(prefix) - 1) != 0)
			continue;
		if (sscanf(line, "alias %255s %63s", pattern, module) != 2 || fnmatch(pattern, modalias, 0) != 0)
			continue;
		if (best < 0 || count_wildcards(pattern) < best) {
			best = count_wildcards(pattern);
			snprintf(name, size, "%s", module);
		}
	}
	free(text);
	return best < 0;
}
